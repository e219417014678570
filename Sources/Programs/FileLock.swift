/// A file that one process at a time holds; the kernel lets go of it when the process ends, however it ends.
///
/// POSIX record locks, because anybody can ask who holds one without taking it.

import Glibc
import Primitives

public final class FileLock: Sendable {
    private let descriptor: Int32

    /// - Parameter taken: what to say if another process holds it
    /// - Throws: `Failure(.refused)` with `taken`; `Failure(.cannotCreate)` if there can be no such file
    public init(path: String, taken: String) throws(Failure) {
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw Failure(
                .cannotCreate,
                "\(path) cannot be created: \(String(cString: strerror(errno))); check the folder and its permissions")
        }
        var whole = flock()
        whole.l_type = Int16(F_WRLCK)
        guard fcntl(descriptor, F_SETLK, &whole) == 0 else {
            close(descriptor)
            throw Failure(.refused, taken)
        }
    }

    deinit { close(descriptor) }

    /// The process that holds the lock, or nil.
    public static func holder(path: String) -> Int? {
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var whole = flock()
        whole.l_type = Int16(F_WRLCK)
        guard fcntl(descriptor, F_GETLK, &whole) == 0, whole.l_type != Int16(F_UNLCK) else { return nil }
        return Int(whole.l_pid)
    }
}
