"""The parts of tools/gpu_report.py: what each measures, and the page that is made of it."""
