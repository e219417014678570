/// Ctrl-C and a service manager's stop, noticed between two steps of work.

import Glibc
import Synchronization

enum Interrupt {
    private static let flag = Atomic<Bool>(false)

    /// From here on the first SIGINT or SIGTERM is only noted; the second one ends the process.
    static func watch() {
        // Touched before a handler can, since the first use of a global takes a lock.
        flag.store(false, ordering: .relaxed)
        for number in [SIGINT, SIGTERM] {
            signal(number) { number in
                Interrupt.flag.store(true, ordering: .relaxed)
                signal(number, SIG_DFL)
            }
        }
    }

    static var isRequested: Bool { flag.load(ordering: .relaxed) }
}
