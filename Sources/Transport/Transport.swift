// Transport.
