"""How events wait for the end of a window: flat lists on the host, packed cells on the device.

Nothing is imported here: a probe needs `recording.cells` alone, which loads neither torchmetrics
nor Lightning.
"""
