"""Precision passes: fp32 graphs rewritten in float16 or with int8 quantisation, drift measured."""
