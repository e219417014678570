/// Whole files, read with an error that says what is wrong with the path.

import FoundationEssentials
import Glibc

public enum FileReading {
    /// - Throws: `Failure(.missingInput)` if the file does not exist, is a folder or cannot be read.
    public static func bytes(_ path: String) throws(Failure) -> [UInt8] {
        var isFolder = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
            throw Failure(.missingInput, "\(path) does not exist")
        }
        if isFolder { throw Failure(.missingInput, "\(path) is a folder; name a file") }
        var status = stat()
        guard stat(path, &status) != 0 || status.st_mode & S_IFMT == S_IFREG else {
            throw Failure(
                .missingInput,
                "\(path) is no regular file but a pipe or a device, which can be read once: write it to a file first")
        }
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Failure(.missingInput, "\(path) cannot be read; check its permissions")
        }
        return Array(data)
    }
}
