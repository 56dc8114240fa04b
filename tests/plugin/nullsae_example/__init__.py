"""An example package: a variant, an architecture, a metric, an explainer and a scorer."""
