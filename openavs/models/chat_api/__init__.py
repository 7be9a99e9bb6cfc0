"""Clients of OpenAI-compatible chat servers, shared by all stages that use one."""
