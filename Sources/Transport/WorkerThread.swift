/// A plain thread, for calls that block: NNG's waits must never hold a thread of Swift's concurrency pool.

import Glibc

final class WorkerThread {
    private var thread = pthread_t()

    /// Starts the thread; nil when the system allows no more of them.
    init?(_ body: @escaping @Sendable () -> Void) {
        let box = Unmanaged.passRetained(Body(body))
        let code = pthread_create(
            &thread, nil,
            { pointer in
                Unmanaged<Body>.fromOpaque(pointer!).takeRetainedValue().run()
                return nil
            }, box.toOpaque())
        guard code == 0 else {
            box.release()
            return nil
        }
    }

    /// Waits for its end; call it once.
    func join() { pthread_join(thread, nil) }

    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
}

/// Blocks the calling thread.
func pause(milliseconds: Int) { usleep(UInt32(milliseconds) * 1000) }
