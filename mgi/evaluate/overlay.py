"""Pictures of a prediction: outlines over an image, with a legend, a scale bar or a number."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

TUMOUR = (213, 94, 0)
INK, PAPER = (34, 34, 34), (255, 255, 255)
BAR_SHARE = 0.25


def draw_outline(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Outline a mask, bool [rows, columns], over a picture of the same field; return the picture."""
    mask = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    line = mask & ~ndimage.binary_erosion(mask, iterations=max(1, max(picture.size) // 500))
    picture.paste(TUMOUR, mask=Image.fromarray(line))
    return picture


def draw_number(picture: Image.Image, number: int) -> Image.Image:
    """Write a slice's number into the corner of its picture; return the picture."""
    font = ImageFont.load_default(max(10, picture.size[1] // 12))
    ImageDraw.Draw(picture).text((4, 2), str(number), PAPER, font, stroke_width=2, stroke_fill=INK)
    return picture


def add_legend(picture: Image.Image, microns_per_px: float | None = None) -> Image.Image:
    """Return the picture with a strip below it: what the outline means and, where the size is known, a scale bar."""
    width, height = picture.size
    text = max(12, min(width, height) // 45)
    strip = 2 * text + text // 2
    sheet = Image.new("RGB", (width, height + strip), PAPER)
    sheet.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    middle = height + strip // 2
    draw.line((text, middle, 3 * text, middle), TUMOUR, max(2, text // 5))
    draw.text((3 * text + text // 2, middle), "predicted tumour", INK, font, "lm")
    if microns_per_px is not None:
        microns, words = choose_scale(width * BAR_SHARE * microns_per_px)
        length = round(microns / microns_per_px)
        draw.line((width - text - length, middle, width - text, middle), INK, max(2, text // 5))
        draw.text((width - 2 * text - length, middle), words, INK, font, "rm")
    return sheet


def choose_scale(most: float) -> tuple[float, str]:
    """Return the largest round length of at most `most` microns, 1, 2 or 5 of a power of ten, and its name."""
    power = 10 ** np.floor(np.log10(most))
    microns = float(max(step for step in (1, 2, 5) if step * power <= most) * power)
    return microns, f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} \N{MICRO SIGN}m"
