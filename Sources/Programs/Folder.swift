/// Folders that a program needs to exist.

import Glibc
import Primitives

public enum Folder {
    /// Creates the folder and those above it, as far as they are missing.
    ///
    /// - Parameter option: that named it, for the error's advice
    public static func create(_ path: String, for option: String, mode: UInt32 = 0o777) throws(Failure) {
        guard !path.isEmpty else { throw Failure(.usage, "\(option) has an empty name: name a folder") }
        var current = path.hasPrefix("/") ? "/" : ""
        for part in path.split(separator: "/") {
            current += part
            if mkdir(current, mode) != 0, errno != EEXIST {
                throw Failure(
                    .cannotCreate,
                    "the folder \(current) cannot be created: \(String(cString: strerror(errno))); choose another place with \(option)"
                )
            }
            current += "/"
        }
        var status = stat()
        guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
            throw Failure(.cannotCreate, "\(path) is not a folder: choose another place with \(option)")
        }
    }
}
