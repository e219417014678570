/// A client's state in a folder: secrets, its record with what that names, ledger, adapters it fetched. One process at a
/// time.

import FoundationEssentials
import Glibc
import Primitives
import Privacy
import Wire

public final class ClientFolder: ClientStorage {
    public let path: String
    private let lock: Int32

    /// Creates the folder if need be, and locks it.
    ///
    /// - Throws: `Failure(.refused)` if another process uses it.
    public init(path: String) throws(Failure) {
        self.path = path
        do {
            for folder in ["/blobs", "/objects"] {
                try FileManager.default.createDirectory(
                    atPath: path + folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            }
        } catch {
            throw Failure(
                .cannotCreate, "the client's state folder \(path) cannot be created: \(error); choose another with --state")
        }
        lock = open(path + "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0, flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            throw Failure(
                .refused,
                "the client's state folder \(path) is in use by another process: stop it, or choose another --name or --state")
        }
    }

    deinit { close(lock) }

    public func secret() throws(Failure) -> [UInt8] {
        if let bytes = try readFile("secret"), bytes.count == WireLimits.secretBytes { return bytes }
        var generator = SystemRandomNumberGenerator()
        let bytes = (0..<WireLimits.secretBytes).map { _ in UInt8(truncatingIfNeeded: generator.next() as UInt64) }
        try writeFile("secret", bytes)
        return bytes
    }

    public func noiseKey() throws(Failure) -> NoiseKey {
        let kept = try readFile("noise-key")
        if let kept, kept.count == NoiseKey.byteCount { return NoiseKey(bytes: kept) }
        // Another key would put other noise on data that was paid for once.
        guard kept == nil, try ledger().entries.isEmpty else {
            throw Failure(
                .badData,
                "the noise key \(path)/noise-key is \(kept == nil ? "missing" : "damaged") and the ledger beside it has entries: restore it from a copy, or start with another --state"
            )
        }
        let key = NoiseKey.random()
        try writeFile("noise-key", key.bytes)
        return key
    }

    // MARK: - Contributions

    public func record(run: String) throws(Failure) -> ClientRecord? {
        guard let record: ClientRecord = try readJSON("record.json"), record.run == run else { return nil }
        return record
    }

    public func keep(_ record: ClientRecord, bytes: [[UInt8]]) throws(Failure) {
        // The bytes first: the record, which is replaced as one, never names what is not there.
        for bytes in bytes { try writeFile("objects/\(Digest(of: bytes))", bytes) }
        try writeJSON("record.json", record)
        removeFiles(in: "objects", except: record.digests)
    }

    public func bytes(_ digest: Digest) throws(Failure) -> [UInt8]? {
        guard let bytes = try readFile("objects/\(digest)"), Digest(of: bytes) == digest else { return nil }
        return bytes
    }

    public func ledger() throws(Failure) -> PrivacyLedger {
        guard FileManager.default.fileExists(atPath: path + "/ledger.json") else { return PrivacyLedger() }
        guard let ledger: PrivacyLedger = try readJSON("ledger.json") else {
            // Going on with an empty one would forget what was spent.
            throw Failure(
                .badData,
                "the privacy ledger \(path)/ledger.json cannot be read: restore it from a copy; without it this data's budget is not known"
            )
        }
        return ledger
    }

    public func keep(_ ledger: PrivacyLedger) throws(Failure) { try writeJSON("ledger.json", ledger) }

    // MARK: - Blobs

    public func blob(_ digest: Digest) throws(Failure) -> [UInt8]? {
        guard let bytes = try readFile("blobs/\(digest)"), Digest(of: bytes) == digest else { return nil }
        return bytes
    }

    public func keepBlob(_ digest: Digest, bytes: [UInt8]) throws(Failure) { try writeFile("blobs/\(digest)", bytes) }

    public func retainBlobs(_ digests: Set<Digest>) throws(Failure) { removeFiles(in: "blobs", except: digests) }

    // MARK: - Files

    private func removeFiles(in folder: String, except digests: Set<Digest>) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path + "/" + folder)) ?? []
        for name in names where !(Digest(hexadecimal: name).map(digests.contains) ?? false) {
            unlink(path + "/" + folder + "/" + name)
        }
    }

    private func readFile(_ name: String) throws(Failure) -> [UInt8]? {
        guard FileManager.default.fileExists(atPath: path + "/" + name) else { return nil }
        do {
            return Array(try Data(contentsOf: URL(filePath: path + "/" + name)))
        } catch {
            throw Failure(.ioError, "\(path)/\(name) cannot be read: \(error)")
        }
    }

    private func writeFile(_ name: String, _ bytes: [UInt8]) throws(Failure) {
        // Keys and updates are this user's alone, whoever may read the folder.
        try FileWriting.replace(path + "/" + name, with: bytes, mode: 0o600)
    }

    private func readJSON<T: Decodable>(_ name: String) throws(Failure) -> T? {
        guard let bytes = try readFile(name) else { return nil }
        // A file that a kill left half-written cannot exist (write beside, then rename); one of another version may.
        return try? JSONDecoder().decode(T.self, from: Data(bytes))
    }

    private func writeJSON(_ name: String, _ value: some Encodable) throws(Failure) {
        guard let data = try? JSONEncoder().encode(value) else {
            throw Failure(.internalError, "\(name) cannot be encoded")
        }
        try writeFile(name, Array(data))
    }
}
