"""Variants: each states only how it differs from its base."""

from typing import Any

from mgi.config.section import sentence
from mgi.names import first_few, quote

STAGES = ("pretrain", "finetune")


def resolve_variants(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a raw configuration with each variant's base laid under its own values, for a validator.

    What is no mapping of variants is left for the validation of types.

    Raises
    ------
    PydanticCustomError
        If a variant is no mapping, or its base is missing or itself.
    """
    resolved = dict(raw)
    for stage in STAGES:
        variants = raw.get(stage)
        if not isinstance(variants, dict):
            continue
        for name, variant in variants.items():
            if not isinstance(variant, dict | None):
                raise sentence(f"'{stage}.{name}' must be a mapping, not {quote(variant)}")
        resolved[stage] = {name: _with_base(stage, variants, name) for name in variants}
    return resolved


def _with_base(stage: str, variants: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a variant with the values of its base, of that one's base, and so on."""
    chain = [name]
    while isinstance(base := (variants[chain[-1]] or {}).get("base"), str):
        if base in chain:
            raise sentence(f"'{stage}.{name}' is its own base by way of {' -> '.join([*chain, base])}")
        if base not in variants:
            raise sentence(f"'{stage}.{chain[-1]}.base' is {quote(base)}, but {stage} has {first_few(variants)}")
        chain.append(base)
    merged: dict[str, Any] = {}
    for one in reversed(chain):
        merged = _overlay(merged, variants[one] or {})
    return merged


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged
