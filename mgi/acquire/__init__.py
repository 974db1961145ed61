"""First floor: gene expression and images brought here, from the GDC or from a simulated cohort in its formats."""
