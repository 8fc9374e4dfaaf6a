"""The HTTP server. `server.app:app` is the ASGI application; only the worker process imports torch."""
