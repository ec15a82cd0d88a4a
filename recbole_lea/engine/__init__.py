"""Packed prompts on any decoder LLM; it knows no paper."""
