/// A plain thread, for calls that block: NNG's waits must never hold a thread of Swift's concurrency pool.

import CNNG
import Glibc
import Synchronization

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

    /// Waits for its end; call it, or `detach`, once.
    func join() { pthread_join(thread, nil) }

    /// Lets it end when it likes.
    func detach() { pthread_detach(thread) }

    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
}

/// Closes a socket. NNG 1.5 can wait for ever for one of its own threads to let go of a broken connection: after some seconds the
/// caller goes on, and the socket is left to NNG.
func closeSocket(_ socket: UInt32, patience: Duration = .seconds(5)) {
    final class Flag: Sendable {
        let isSet = Atomic<Bool>(false)
    }
    let done = Flag()
    let thread = WorkerThread {
        nng_close(nng_socket(id: socket))
        done.isSet.store(true, ordering: .releasing)
    }
    // Without a thread to wait for there is no choice.
    guard let thread else {
        nng_close(nng_socket(id: socket))
        return
    }
    let deadline = ContinuousClock.now + patience
    while !done.isSet.load(ordering: .acquiring), ContinuousClock.now < deadline { pause(milliseconds: 1) }
    if done.isSet.load(ordering: .acquiring) { thread.join() } else { thread.detach() }
}

/// Blocks the calling thread.
func pause(milliseconds: Int) { usleep(UInt32(milliseconds) * 1000) }
