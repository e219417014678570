/// Whole files: written beside, forced to the disk, then renamed, so that no reader ever sees half of one.

import Glibc

public enum FileWriting {
    /// Replaces the file at `path`.
    ///
    /// - Throws: `Failure(.ioError)` if the disk is full, `Failure(.cannotCreate)` if the folder cannot be written.
    ///
    /// - Parameter mode: of the new file; 0600 for what others must not read
    public static func replace(_ path: String, with bytes: [UInt8], mode: mode_t = 0o644) throws(Failure) {
        let temporary = path + ".tmp-\(getpid())"
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
        guard descriptor >= 0 else { throw problem(path, errno) }
        var code: Int32 = 0
        bytes.withUnsafeBytes { buffer in
            var offset = 0
            while offset < buffer.count {
                let count = write(descriptor, buffer.baseAddress! + offset, buffer.count - offset)
                if count < 0 {
                    if errno == EINTR { continue }
                    code = errno
                    return
                }
                offset += count
            }
        }
        if code == 0, fsync(descriptor) != 0 { code = errno }
        if close(descriptor) != 0, code == 0 { code = errno }
        if code == 0, rename(temporary, path) != 0 { code = errno }
        if code != 0 {
            unlink(temporary)
            throw problem(path, code)
        }
        forceFolder(of: path)
    }

    /// Makes the new name itself survive a power cut. A file system that cannot do so is not an error: the bytes are there.
    private static func forceFolder(of path: String) {
        let end = path.utf8.lastIndex(of: UInt8(ascii: "/"))
        let folder = end.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        _ = fsync(descriptor)
        close(descriptor)
    }

    public static func replace(_ path: String, with text: String) throws(Failure) {
        try replace(path, with: Array(text.utf8))
    }

    private static func problem(_ path: String, _ code: Int32) -> Failure {
        if code == EFBIG {
            return Failure(
                .ioError, "\(path) cannot be written: \(String(cString: strerror(code))); raise the limit on files (ulimit -f)")
        }
        if code == ENOSPC || code == EDQUOT {
            return Failure(.ioError, "\(path) cannot be written: the disk is full; free space and run the same command again")
        }
        return Failure(
            .cannotCreate, "\(path) cannot be written: \(String(cString: strerror(code))); check the folder and its permissions")
    }
}
