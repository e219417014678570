/// One blocking send or receive at a time on an NNG socket or context, with its own time limit.
///
/// It has no callback: the calling thread waits. So the last reference never dies on one of NNG's own threads, where
/// freeing an `nng_aio` waits for itself for ever.

import CNNG

struct Operation: ~Copyable {
    let handle: OpaquePointer

    /// Nil when there is no memory for it.
    init?() {
        var handle: OpaquePointer?
        guard nng_aio_alloc(&handle, nil, nil) == 0, let handle else { return nil }
        self.handle = handle
    }

    deinit { nng_aio_free(handle) }

    /// Waits for what `begin` starts.
    ///
    /// - Returns: NNG's code; 0 is success
    borrowing func wait(milliseconds: Int32, _ begin: (OpaquePointer) -> Void) -> Int32 {
        nng_aio_set_timeout(handle, milliseconds)
        begin(handle)
        nng_aio_wait(handle)
        return nng_aio_result(handle)
    }

    /// Sends a copy of the bytes.
    borrowing func send(_ bytes: [UInt8], milliseconds: Int32, _ begin: (OpaquePointer) -> Void) -> Int32 {
        var message: OpaquePointer?
        let code = nng_msg_alloc(&message, bytes.count)
        guard code == 0, let message else { return code }
        if !bytes.isEmpty {
            bytes.withUnsafeBytes { nng_msg_body(message)!.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        }
        nng_aio_set_msg(handle, message)
        let result = wait(milliseconds: milliseconds, begin)
        // After a success NNG owns the message; after a failure it is still ours.
        if result != 0 {
            nng_msg_free(message)
            nng_aio_set_msg(handle, nil)
        }
        return result
    }

    /// Receives a message: its bytes, and the connection that it came over.
    borrowing func receive(
        milliseconds: Int32, _ begin: (OpaquePointer) -> Void
    ) -> (code: Int32, bytes: [UInt8], pipe: UInt32) {
        let code = wait(milliseconds: milliseconds, begin)
        guard code == 0 else { return (code, [], 0) }
        guard let message = nng_aio_get_msg(handle) else { return (NNGCode.connectionReset, [], 0) }
        defer {
            nng_msg_free(message)
            nng_aio_set_msg(handle, nil)
        }
        let bytes = [UInt8](UnsafeRawBufferPointer(start: nng_msg_body(message), count: nng_msg_len(message)))
        return (0, bytes, nng_msg_get_pipe(message).id)
    }
}

/// Seconds as NNG's milliseconds: at least 1, at most 24 days, so that no time limit means "for ever" by accident.
func milliseconds(_ seconds: Double) -> Int32 {
    guard seconds > 0.001 else { return 1 }
    return seconds < 2_000_000 ? Int32(seconds * 1000) : 2_000_000_000
}
