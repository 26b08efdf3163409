from ibtrain.api import InstructBlip as InstructBlip

__version__: str
