"""The HTTP server. `lora_drift.server.app:app` is the ASGI application; only the worker process imports torch."""
