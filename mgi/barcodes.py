"""TCGA barcodes: what one says of its sample, aliquot and slide.

https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode
"""

import re

# The sample part of a TCGA barcode: its code, in the GDC's words for it.
BARCODE = re.compile(r"TCGA-\w\w-\w{4}-(?P<sample>\d\d)[A-Z]-\d\d(?P<analyte>[A-Z])?-?(?P<section>DX|TS|BS|MS)?")
SAMPLE_TYPES = {
    "01": "Primary Tumor",
    "02": "Recurrent Tumor",
    "03": "Primary Blood Derived Cancer - Peripheral Blood",
    "05": "Additional - New Primary",
    "06": "Metastatic",
    "07": "Additional Metastatic",
    "10": "Blood Derived Normal",
    "11": "Solid Tissue Normal",
}
# Codes from here on are normal tissue, controls and cell lines.
NOT_TUMOUR = "10"
