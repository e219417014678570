/// A thread for the other side of a conversation with a program.

import Glibc

/// A thread that is joined or detached.
final class Thread {
    private var thread = pthread_t()
    init(_ body: @escaping @Sendable () -> Void) {
        let box = Unmanaged.passRetained(Box(body))
        pthread_create(
            &thread, nil,
            { pointer in
                if let pointer { Unmanaged<Box>.fromOpaque(pointer).takeRetainedValue().body() }
                return nil
            }, box.toOpaque())
    }
    func join() { pthread_join(thread, nil) }
    /// Nobody waits for its end.
    func detach() { pthread_detach(thread) }
    private final class Box: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
}
