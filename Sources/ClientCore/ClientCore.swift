// ClientCore.
