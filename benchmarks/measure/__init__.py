"""How a case is measured, whatever its op; the ops are found by ``registry``."""
