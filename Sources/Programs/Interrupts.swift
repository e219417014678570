/// SIGINT and SIGTERM as a flag and a call on a thread of its own; a second signal ends the process at once.
///
/// Handlers instead of a blocked mask with `sigwait`: OpenBLAS starts threads before `main`, whose masks nobody sets, and a
/// signal delivered to one of them would kill the process.

import Glibc
import Primitives
import Synchronization

public enum Interrupts {
    private static let count = Atomic<Int>(0)
    private static let writeEnd = Atomic<Int32>(-1)

    /// Whether a signal has arrived.
    public static var isInterrupted: Bool { count.load(ordering: .acquiring) > 0 }

    /// Takes the signals over; call it once, before other threads start.
    ///
    /// - Parameter onFirst: called on a thread of its own after the first signal; must not block for long
    public static func watch(_ onFirst: @escaping @Sendable () -> Void) throws(Failure) {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0, ends.allSatisfy({ fcntl($0, F_SETFD, FD_CLOEXEC) == 0 }) else {
            throw Failure(
                .unavailable,
                "no pipe can be opened: \(String(cString: strerror(errno))); raise the limit of open files (ulimit -n)")
        }
        let readEnd = ends[0]
        writeEnd.store(ends[1], ordering: .releasing)
        _ = count.load(ordering: .acquiring)
        let started = DetachedThread.start {
            var byte: UInt8 = 0
            while read(readEnd, &byte, 1) < 0, errno == EINTR {}
            onFirst()
        }
        guard started else {
            throw Failure(.unavailable, "the system allows no more threads: raise the limit (ulimit -u) or stop other programs")
        }
        var action = sigaction()
        action.sa_flags = SA_RESTART
        action.__sigaction_handler.sa_handler = { _ in
            // Only what a signal handler may do: atomics, write, _exit.
            if Interrupts.count.add(1, ordering: .acquiringAndReleasing).newValue > 1 {
                _exit(ExitStatus.interrupted.rawValue)
            }
            var byte: UInt8 = 1
            _ = write(Interrupts.writeEnd.load(ordering: .acquiring), &byte, 1)
        }
        sigaction(SIGINT, &action, nil)
        sigaction(SIGTERM, &action, nil)
        // Whoever started this program may have had them blocked, and the mask is inherited.
        var both = sigset_t()
        sigemptyset(&both)
        sigaddset(&both, SIGINT)
        sigaddset(&both, SIGTERM)
        pthread_sigmask(SIG_UNBLOCK, &both, nil)
    }

    /// Blocks the calling thread.
    public static func pause(milliseconds: Int) { usleep(UInt32(max(0, min(milliseconds, 1000)) * 1000)) }

    /// Waits; returns early, with false, when a signal arrives.
    public static func sleep(seconds: Double) -> Bool {
        let end = ContinuousClock.now + .seconds(max(0, min(seconds, 1e6)))
        while !isInterrupted {
            let left = (end - ContinuousClock.now) / .milliseconds(1)
            guard left > 0 else { return true }
            usleep(UInt32(min(50, max(1, left)) * 1000))
        }
        return false
    }
}

/// A thread that ends by itself or with the process: for work that blocks.
public enum DetachedThread {
    /// False when the system allows no more threads.
    public static func start(_ body: @escaping @Sendable () -> Void) -> Bool {
        let box = Unmanaged.passRetained(Body(body))
        var thread = pthread_t()
        let code = pthread_create(
            &thread, nil,
            { pointer in
                if let pointer { Unmanaged<Body>.fromOpaque(pointer).takeRetainedValue().run() }
                return nil
            }, box.toOpaque())
        guard code == 0 else {
            box.release()
            return false
        }
        pthread_detach(thread)
        return true
    }

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
}
