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
    _ path: String, replacing isOurs: (String) -> Bool, _ body: (_ temporary: String) throws(Failure) -> Void
) throws(Failure) {
    try putInPlace([try stageFolder(path, replacing: isOurs, body)])
}

/// A folder that was written beside its place: `putInPlace` puts it there, `discard` removes it.
public struct StagedFolder: Sendable {
    public let path: String
    private let temporary: String
    /// Where what it replaces stands aside, to come back if anything fails.
    private let old: String

    fileprivate init(path: String) {
        self.path = path
        temporary = "\(path).tmp-\(getpid())"
        old = "\(path).old-\(getpid())"
    }

    fileprivate func write(
        replacing isOurs: (String) -> Bool, _ body: (_ temporary: String) throws(Failure) -> Void
    ) throws(Failure) {
        try checkReplaceable(path, replacing: isOurs)
        if let slash = path.lastIndex(of: "/"), slash != path.startIndex { makeFolders(String(path[..<slash])) }
        removeFlatFolder(temporary)
        guard mkdir(temporary, 0o755) == 0 else {
            throw Failure(.cannotCreate, "the folder \(path) cannot be made: \(systemMessage(errno))")
        }
        do {
            try body(temporary)
            try checkReplaceable(path, replacing: isOurs)
        } catch {
            discard()
            // People know the folder by its name.
            throw Failure(error.status, error.message.replacing(temporary, with: path))
        }
    }

    fileprivate func put() throws(Failure) {
        let isReplacing = fileExists(path)
        guard !isReplacing || rename(path, old) == 0 else {
            throw Failure(.cannotCreate, "the folder \(path) cannot be replaced: \(systemMessage(errno))")
        }
        guard rename(temporary, path) == 0 else {
            let failure = Failure(.cannotCreate, "the folder \(path) cannot be put in place: \(systemMessage(errno))")
            if isReplacing { rename(old, path) }
            throw failure
        }
    }

    /// Undoes `put`.
    fileprivate func takeBack() {
        rename(path, temporary)
        if fileExists(old) { rename(old, path) }
    }

    fileprivate func removeOld() { removeFlatFolder(old) }

    /// Removes what was written.
    public func discard() { removeFlatFolder(temporary) }
}

/// Writes a folder of files beside its place, as `writeFolder` does, and leaves it there.
public func stageFolder(
    _ path: String, replacing isOurs: (String) -> Bool, _ body: (_ temporary: String) throws(Failure) -> Void
) throws(Failure) -> StagedFolder {
    let folder = StagedFolder(path: path.count > 1 && path.hasSuffix("/") ? String(path.dropLast()) : path)
    try folder.write(replacing: isOurs, body)
    return folder
}

/// Puts folders in their places, each in one step; if one cannot be, what was there before is back, and nothing is kept of any.
public func putInPlace(_ folders: [StagedFolder]) throws(Failure) {
    for (index, folder) in folders.enumerated() {
        do {
            try folder.put()
        } catch {
            for done in folders[..<index].reversed() { done.takeBack() }
            for folder in folders { folder.discard() }
            throw error
        }
    }
    for folder in folders { folder.removeOld() }
}

/// - Throws: `Failure(.cannotCreate)` if something stands at `path` that `writeFolder` would not replace.
public func checkReplaceable(_ path: String, replacing isOurs: (String) -> Bool) throws(Failure) {
    guard fileExists(path) else { return }
    var status = stat()
    guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
        throw Failure(.cannotCreate, "\(path) exists and is not a folder: name another output")
    }
    for name in try listFolder(path) where !isOurs(name) {
        throw Failure(.cannotCreate, "the folder \(path) exists and holds \(name), which would be lost: name another output")
    }
}

/// Removes a folder of plain files; one with folders in it stays.
func removeFlatFolder(_ path: String) {
    guard let names = try? listFolder(path) else { return }
    for name in names { unlink(path + "/" + name) }
    rmdir(path)
}
