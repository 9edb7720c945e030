"""The checks of the exercises, one module per lesson (``l01_forward_and_reverse``); loaded when first needed."""
