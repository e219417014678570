/// The run's state on the disk: the SQLite file, and beside it the lock, the digest cache and the model's place.

import Checkpoints
import CoordinatorCore
import CoordinatorStore
import FoundationEssentials
import Glibc
import Primitives
import Programs

struct StateFile {
    static let defaultName = "state.sqlite"
    /// Where the commands that only look find a run that was started with the default places.
    static let defaultPath = Settings.defaultOutput + "/" + defaultName

    let path: String

    /// The folder that the file lies in; digests of base models are cached there.
    var folder: String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    private var lockPath: String { path + ".lock" }
    private var modelPath: String { path + ".model" }

    func createFolder() throws(Failure) { try Folder.create(folder, for: "--state") }

    /// Held while a coordinator runs.
    func lock() throws(Failure) -> FileLock {
        try FileLock(
            path: lockPath,
            taken: "the state \(path) is in use by another coordinator: stop that one, or choose another --state for another run")
    }

    /// The process id of the coordinator that runs, or nil.
    var coordinator: Int? { FileLock.holder(path: lockPath) }

    /// Opens what exists.
    ///
    /// - Throws: `Failure(.missingInput)` if there is no file, `Failure(.badData)` if it holds no run
    func open() throws(Failure) -> (store: SQLiteFederationStore, federation: StoredFederation) {
        guard SQLiteFederationStore.exists(at: path) else {
            throw Failure(.missingInput, "there is no state file \(path): name a run's file with --state")
        }
        let store = try SQLiteFederationStore(path: path)
        guard let federation = try store.load() else {
            throw Failure(.badData, "\(path) holds no run yet: start a coordinator with it first")
        }
        return (store, federation)
    }

    /// Remembers where the model lies, so that `export` need not be told.
    func rememberModel(_ folder: String) throws(Failure) { try FileWriting.replace(modelPath, with: absolutePath(folder) + "\n") }

    var rememberedModel: String? {
        guard let data = try? Data(contentsOf: URL(filePath: modelPath)) else { return nil }
        let text = String(decoding: data, as: UTF8.self)
        return text.hasSuffix("\n") ? String(text.dropLast()) : text
    }
}

/// With symbolic links resolved, if there is such a file.
func absolutePath(_ path: String) -> String {
    guard let resolved = realpath(path, nil) else { return path }
    defer { free(resolved) }
    return String(cString: resolved)
}
