/// A client's state in a folder: secret, pending contribution, adapters it fetched. One process at a time.

import FoundationEssentials
import Glibc
import Primitives
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
            try FileManager.default.createDirectory(
                atPath: path + "/blobs", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
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

    // MARK: - Contributions

    private struct Kept: Codable {
        let run: String
        let pending: PendingContribution
    }
    private struct Acknowledged: Codable {
        let run: String
        let round: UInt32
        let digest: Digest
    }

    public func pending(run: String) throws(Failure) -> (PendingContribution, bytes: [UInt8])? {
        guard let kept: Kept = try readJSON("pending.json"), kept.run == run, let bytes = try readFile("pending.update"),
            Digest(of: bytes) == kept.pending.digest
        else { return nil }
        return (kept.pending, bytes)
    }

    public func keep(_ pending: PendingContribution, bytes: [UInt8], run: String) throws(Failure) {
        // The bytes first: a description without its bytes would be a contribution that does not exist.
        try writeFile("pending.update", bytes)
        try writeJSON("pending.json", Kept(run: run, pending: pending))
    }

    public func discardPending(run: String) throws(Failure) {
        unlink(path + "/pending.json")
        unlink(path + "/pending.update")
    }

    public func lastContribution(run: String) throws(Failure) -> ContributionKey? {
        guard let last: Acknowledged = try readJSON("last.json"), last.run == run else { return nil }
        return ContributionKey(round: last.round, digest: last.digest)
    }

    public func setLastContribution(_ key: ContributionKey?, run: String) throws(Failure) {
        guard let key else {
            unlink(path + "/last.json")
            return
        }
        try writeJSON("last.json", Acknowledged(run: run, round: key.round, digest: key.digest))
    }

    // MARK: - Blobs

    public func blob(_ digest: Digest) throws(Failure) -> [UInt8]? {
        guard let bytes = try readFile("blobs/\(digest)"), Digest(of: bytes) == digest else { return nil }
        return bytes
    }

    public func keepBlob(_ digest: Digest, bytes: [UInt8]) throws(Failure) { try writeFile("blobs/\(digest)", bytes) }

    public func retainBlobs(_ digests: Set<Digest>) throws(Failure) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path + "/blobs")) ?? []
        for name in names where !(Digest(hexadecimal: name).map(digests.contains) ?? false) {
            unlink(path + "/blobs/" + name)
        }
    }

    // MARK: - Files

    private func readFile(_ name: String) throws(Failure) -> [UInt8]? {
        guard FileManager.default.fileExists(atPath: path + "/" + name) else { return nil }
        do {
            return Array(try Data(contentsOf: URL(filePath: path + "/" + name)))
        } catch {
            throw Failure(.ioError, "\(path)/\(name) cannot be read: \(error)")
        }
    }

    private func writeFile(_ name: String, _ bytes: [UInt8]) throws(Failure) {
        try FileWriting.replace(path + "/" + name, with: bytes)
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
