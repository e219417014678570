/// Folders: made with their parents, and replaced as a whole.

import Glibc
import Primitives

/// Makes a folder and its parents; existing ones are left alone.
///
/// - Returns: false if it is not there afterwards.
@discardableResult public func makeFolders(_ path: String) -> Bool {
    var status = stat()
    if stat(path, &status) == 0 { return status.st_mode & S_IFMT == S_IFDIR }
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex, !makeFolders(String(path[..<slash])) { return false }
    return mkdir(path, 0o755) == 0 || errno == EEXIST
}

/// The names in a folder, sorted bytewise.
public func listFolder(_ path: String) throws(Failure) -> [String] {
    guard let folder = opendir(path) else { throw cannotRead(path) }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
}

/// Writes a folder of files beside its place, and puts it there in one step.
///
/// An existing folder is replaced only if it holds nothing but files of the given kind, so that a mistyped output path
/// destroys nothing.
public func writeFolder(
    _ path: String, replacing isOurs: @escaping (String) -> Bool, _ body: (_ temporary: String) throws(Failure) -> Void
) throws(Failure) {
    try FolderWriting(path, replacing: isOurs).finish(body)
}

/// A folder that is being written: made beside its place at once, so that an output that cannot be made is known before the
/// work for it begins, and put there in one step. Without that step nothing is left of it.
public final class FolderWriting {
    public let path: String
    private let isOurs: (String) -> Bool
    private let temporary: String
    /// Parents that were not there before, outermost first.
    private let parents: [String]
    private var isFinished = false

    /// - Parameter isOurs: the files that a folder in this place may hold and be replaced
    /// - Throws: `Failure(.cannotCreate)` if something else is in the place, or no folder can be made there
    public init(_ path: String, replacing isOurs: @escaping (String) -> Bool) throws(Failure) {
        let path = path.count > 1 && path.hasSuffix("/") ? String(path.dropLast()) : path
        try checkReplaceable(path, replacing: isOurs)
        self.path = path
        self.isOurs = isOurs
        temporary = "\(path).tmp-\(getpid())"
        var missing: [String] = []
        var parent = path
        while let slash = parent.lastIndex(of: "/"), slash != parent.startIndex {
            parent = String(parent[..<slash])
            if fileExists(parent) { break }
            missing.insert(parent, at: 0)
        }
        parents = missing
        var isMade = missing.last.map { makeFolders($0) } ?? true
        if isMade {
            removeOwnFolder(temporary)
            isMade = mkdir(temporary, 0o755) == 0
        }
        guard isMade else {
            let code = errno
            for parent in parents.reversed() { rmdir(parent) }
            throw Failure(.cannotCreate, "the folder \(path) cannot be made: \(systemMessage(code)); name another output")
        }
    }

    deinit { if !isFinished { discard() } }

    private func discard() {
        removeOwnFolder(temporary)
        // Those in which somebody put something meanwhile stay.
        for parent in parents.reversed() { rmdir(parent) }
    }

    /// Writes the files, and puts the folder in its place; what was there before stays if that fails.
    public func finish(_ body: (_ temporary: String) throws(Failure) -> Void) throws(Failure) {
        do {
            try body(temporary)
            try checkReplaceable(path, replacing: isOurs)
        } catch {
            // People know the folder by its name.
            throw Failure(error.status, error.message.replacing(temporary, with: path))
        }
        if fileExists(path) {
            // Two renames: the old folder stands aside for the moment between them, and comes back if the second fails.
            let old = "\(path).old-\(getpid())"
            guard rename(path, old) == 0 else {
                throw Failure(.cannotCreate, "the folder \(path) cannot be replaced: \(systemMessage(errno))")
            }
            guard rename(temporary, path) == 0 else {
                let failure = Failure(.cannotCreate, "the folder \(path) cannot be put in place: \(systemMessage(errno))")
                rename(old, path)
                throw failure
            }
            removeFlatFolder(old)
        } else if rename(temporary, path) != 0 {
            throw Failure(.cannotCreate, "the folder \(path) cannot be put in place: \(systemMessage(errno))")
        }
        isFinished = true
    }
}

/// - Throws: `Failure(.cannotCreate)` if something stands at `path` that `writeFolder` would not replace.
public func checkReplaceable(_ path: String, replacing isOurs: (String) -> Bool) throws(Failure) {
    guard !path.isEmpty else { throw Failure(.usage, "the output has an empty name: name a folder") }
    guard fileExists(path) else { return }
    var status = stat()
    guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
        throw Failure(.cannotCreate, "\(path) exists and is not a folder: name another output")
    }
    for name in try listFolder(path) where !isOurs(name) {
        throw Failure(.cannotCreate, "the folder \(path) exists and holds \(name), which would be lost: name another output")
    }
}

/// - Throws: `Failure(.missingInput)` if there is a folder, but what is in it may not be seen
public func checkFolderCanBeEntered(_ path: String) throws(Failure) {
    var status = stat()
    if stat(path, &status) == 0 {
        guard status.st_mode & S_IFMT == S_IFDIR, access(path, X_OK) != 0 else { return }
    } else if errno != EACCES {
        return
    }
    throw Failure(.missingInput, "\(path) cannot be entered: check its permissions, and those of the folders around it")
}

/// Removes a folder of plain files; one with folders in it stays.
func removeFlatFolder(_ path: String) {
    guard let names = try? listFolder(path) else { return }
    for name in names { unlink(path + "/" + name) }
    rmdir(path)
}

/// Removes a folder that this program made, with the folders in it.
private func removeOwnFolder(_ path: String) {
    guard let names = try? listFolder(path) else { return }
    for name in names where unlink(path + "/" + name) != 0 { removeFlatFolder(path + "/" + name) }
    rmdir(path)
}
