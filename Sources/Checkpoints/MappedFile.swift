/// A file mapped into memory for reading, and small files read whole.

import Glibc
import Primitives

// Sendable although it holds a pointer: the mapping is read-only, is made once in `init`, and is released only in
// `deinit`, when nobody holds the object any more.
public final class MappedFile: @unchecked Sendable {
    public let path: String
    public let size: Int
    /// Nanoseconds since 1970.
    public let modificationTime: Int
    private let base: UnsafeMutableRawPointer?

    /// Maps the whole file.
    ///
    /// A file that somebody else cuts short while it is mapped ends the process (SIGBUS), as with every user of mmap.
    /// - Throws: `Failure` if it does not exist, cannot be read, or is a folder.
    public init(path: String) throws(Failure) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw cannotRead(path) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw cannotRead(path) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw Failure(.missingInput, "\(path) is not a file") }
        self.path = path
        size = Int(status.st_size)
        modificationTime = Int(status.st_mtim.tv_sec) &* 1_000_000_000 &+ Int(status.st_mtim.tv_nsec)
        guard size > 0 else {
            base = nil
            return
        }
        let mapping = mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else { throw cannotRead(path) }
        base = mapping
    }

    deinit {
        if let base { munmap(base, size) }
    }

    /// The whole file; valid while this object lives.
    public var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: base, count: size) }

    /// Tells the kernel that the range will be read once, from front to back.
    public func adviseSequential(_ range: Range<Int>) { advise(range, MADV_SEQUENTIAL, inward: false) }
    /// Gives the whole pages of the range back; they are read again when touched.
    public func release(_ range: Range<Int>) { advise(range, MADV_DONTNEED, inward: true) }

    private func advise(_ range: Range<Int>, _ advice: Int32, inward: Bool) {
        guard let base, range.lowerBound >= 0, range.upperBound <= size else { return }
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let start = (inward ? range.lowerBound + page - 1 : range.lowerBound) / page * page
        let end = inward ? range.upperBound / page * page : range.upperBound
        if end > start { _ = madvise(base + start, end - start, advice) }
    }
}

/// The whole content of a small file.
///
/// - Throws: `Failure` if it does not exist, cannot be read, or is above `limit` bytes.
public func readFile(_ path: String, limit: Int = 1 << 30) throws(Failure) -> [UInt8] {
    let file = try MappedFile(path: path)
    guard file.size <= limit else {
        throw Failure(.badData, "\(path) has \(file.size) bytes, more than the \(limit) possible for such a file")
    }
    return Array(file.bytes)
}

/// The content of a JSON file.
public func readJSON(_ path: String, limit: Int = 1 << 28) throws(Failure) -> JSONValue {
    let bytes = try readFile(path, limit: limit)
    do {
        return try JSONValue(parsing: bytes)
    } catch {
        throw Failure(.badData, "\(path) is not valid JSON: \(error.message) at byte \(error.position); fetch the file again")
    }
}

public func fileExists(_ path: String) -> Bool { access(path, F_OK) == 0 }

func cannotRead(_ path: String) -> Failure {
    let code = errno
    return code == ENOENT || code == ENOTDIR
        ? Failure(.missingInput, "\(path) does not exist")
        : Failure(.missingInput, "\(path) cannot be read: \(systemMessage(code))")
}

/// The system's words for an error number.
public func systemMessage(_ code: Int32) -> String { String(cString: strerror(code)) }
