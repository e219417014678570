/// A federation in one SQLite file: write-ahead log, one transaction a list of changes.
///
/// `status` and `export` read the same file while a coordinator writes it, or while none runs.

import CoordinatorCore
import FoundationEssentials
import GRDB
import Glibc
import Plan
import Primitives
import UpdateCodec

public final class SQLiteFederationStore: FederationStore {
    private let database: DatabasePool
    private let path: String

    /// How much a power cut may cost. A kill of the process costs nothing either way.
    public enum Durability: Sendable {
        /// Every list of changes is on the disk before `apply` returns.
        case full
        /// The last few may be lost with the power: enough for a simulation, which can repeat them.
        case processOnly
    }

    /// Opens or creates the file.
    public init(path: String, durability: Durability = .full) throws(Failure) {
        self.path = path
        var configuration = Configuration()
        configuration.prepareDatabase { database in
            try database.execute(sql: durability == .full ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL")
        }
        // Readers such as `status` must not make a write fail.
        configuration.busyMode = .timeout(10)
        do {
            database = try DatabasePool(path: path, configuration: configuration)
            // It holds the key of private noise; SQLite gives the files beside it the same mode.
            chmod(path, 0o600)
            let migrator = Schema.migrator
            if try database.read(migrator.hasBeenSuperseded) {
                throw Failure(.badConfiguration, "\(path) was written by a newer version of Tributary: use that version")
            }
            try migrator.migrate(database)
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Self.failure(error, path: path, doing: "opened")
        }
    }

    public static func exists(at path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    /// Names the cause of a database error in a sentence.
    static func failure(_ error: any Error, path: String, doing what: String) -> Failure {
        guard let error = error as? DatabaseError else {
            return Failure(.ioError, "the state \(path) cannot be \(what): \(error)")
        }
        switch error.resultCode {
        case .SQLITE_FULL:
            return Failure(
                .ioError,
                "the state \(path) cannot be \(what): the disk is full; free space and start again, nothing that was acknowledged is lost"
            )
        case .SQLITE_NOTADB, .SQLITE_CORRUPT:
            return Failure(.badData, "\(path) is no state of Tributary, or is damaged: choose another file or restore a copy")
        case .SQLITE_CANTOPEN where access(path, F_OK) != 0:
            return Failure(.cannotCreate, "the state \(path) cannot be \(what): check that its folder exists and can be written")
        case .SQLITE_CANTOPEN, .SQLITE_READONLY:
            return Failure(
                .cannotCreate,
                "the state \(path) cannot be \(what): SQLite writes beside it even to read it, and here it may not; check the permissions, or copy it and the files \(path)-* to another folder and name the copy with --state"
            )
        case .SQLITE_BUSY, .SQLITE_LOCKED:
            return Failure(.ioError, "the state \(path) is in use by another process: stop the other coordinator first")
        default:
            return Failure(
                .ioError, "the state \(path) cannot be \(what): \(error.message ?? "SQLite error \(error.resultCode.rawValue)")")
        }
    }

    private func read<T>(_ body: (Database) throws -> T) throws(Failure) -> T {
        do {
            return try database.read(body)
        } catch {
            throw (error as? Failure) ?? Self.failure(error, path: path, doing: "read")
        }
    }

    public func apply(_ changes: [StoreChange]) throws(Failure) {
        do {
            try database.write { database in
                for change in changes { try Schema.apply(change, to: database) }
            }
        } catch {
            throw (error as? Failure) ?? Self.failure(error, path: path, doing: "written")
        }
    }

    public func load() throws(Failure) -> StoredFederation? { try read(Schema.load) }

    /// Names of the members, ascending: `forget` takes one away, also while a coordinator runs.
    public func memberNames() throws(Failure) -> [String] {
        try read { database in try String.fetchAll(database, sql: "SELECT name FROM member ORDER BY name") }
    }

    public func chunkIndices(client: String, digest: Digest) throws(Failure) -> [Int] {
        try read { database in
            try Int.fetchAll(
                database, sql: "SELECT position FROM chunk WHERE client = ? AND digest = ? ORDER BY position",
                arguments: [client, digest.description])
        }
    }

    public func assembledChunks(client: String, digest: Digest) throws(Failure) -> [UInt8] {
        try read { database in
            var bytes: [UInt8] = []
            let rows = try Row.fetchCursor(
                database, sql: "SELECT bytes FROM chunk WHERE client = ? AND digest = ? ORDER BY position",
                arguments: [client, digest.description])
            while let row = try rows.next() {
                try row.withUnsafeData(atIndex: 0) { data in if let data { bytes += data } }
            }
            return bytes
        }
    }

    public func contributionBytes(round: Int, client: String) throws(Failure) -> [UInt8] {
        let bytes = try read { database in
            try Data.fetchOne(
                database, sql: "SELECT bytes FROM contribution WHERE round = ? AND client = ?", arguments: [round, client])
        }
        guard let bytes else {
            throw Failure(.badData, "the state \(path) lacks the contribution of \(client) to round \(round): restore a copy")
        }
        return Array(bytes)
    }

    public func blobBytes(_ digest: Digest) throws(Failure) -> [UInt8]? {
        try read { database in
            try Data.fetchOne(database, sql: "SELECT bytes FROM blob WHERE digest = ?", arguments: [digest.description])
                .map { Array($0) }
        }
    }
}
