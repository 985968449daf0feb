"""Attention: reference, packed rows, decoding, and Pallas kernels for decoding."""
