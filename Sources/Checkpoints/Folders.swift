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
    let path = path.count > 1 && path.hasSuffix("/") ? String(path.dropLast()) : path
    try checkReplaceable(path, replacing: isOurs)
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex { makeFolders(String(path[..<slash])) }
    let temporary = "\(path).tmp-\(getpid())"
    removeFlatFolder(temporary)
    guard mkdir(temporary, 0o755) == 0 else {
        throw Failure(.cannotCreate, "the folder \(path) cannot be made: \(systemMessage(errno))")
    }
    do {
        try body(temporary)
        try checkReplaceable(path, replacing: isOurs)
    } catch {
        removeFlatFolder(temporary)
        // People know the folder by its name.
        throw Failure(error.status, error.message.replacing(temporary, with: path))
    }
    if fileExists(path) {
        // Two renames: the old folder stands aside for the moment between them, and comes back if the second fails.
        let old = "\(path).old-\(getpid())"
        guard rename(path, old) == 0 else {
            let failure = Failure(.cannotCreate, "the folder \(path) cannot be replaced: \(systemMessage(errno))")
            removeFlatFolder(temporary)
            throw failure
        }
        guard rename(temporary, path) == 0 else {
            let failure = Failure(.cannotCreate, "the folder \(path) cannot be put in place: \(systemMessage(errno))")
            rename(old, path)
            removeFlatFolder(temporary)
            throw failure
        }
        removeFlatFolder(old)
    } else if rename(temporary, path) != 0 {
        let failure = Failure(.cannotCreate, "the folder \(path) cannot be put in place: \(systemMessage(errno))")
        removeFlatFolder(temporary)
        throw failure
    }
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
