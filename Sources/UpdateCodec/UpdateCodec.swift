// UpdateCodec.
