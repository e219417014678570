/// A file that one process at a time holds; the kernel lets go of it when the process ends, however it ends.

import Glibc
import Primitives

public final class FileLock: Sendable {
    private let descriptor: Int32

    /// - Parameter taken: what to say if another process holds it
    /// - Throws: `Failure(.refused)` with `taken`; `Failure(.cannotCreate)` if there can be no such file
    public init(path: String, taken: String) throws(Failure) {
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw Failure(.cannotCreate, "\(path) cannot be created: \(String(cString: strerror(errno))); check the folder and its permissions")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw Failure(.refused, taken)
        }
    }

    deinit { close(descriptor) }
}
