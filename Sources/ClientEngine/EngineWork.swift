// Client engine.
