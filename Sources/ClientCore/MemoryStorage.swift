/// A simulated client's state in memory, with one cache of adapters for all of them.

import Primitives
import Privacy
import Wire

/// Adapters that simulated clients have fetched: each is held once, however many clients have it.
public final class SharedBlobs {
    private var bytes: [Digest: [UInt8]] = [:]
    private var holders: [Digest: Int] = [:]

    public init() {}

    func get(_ digest: Digest) -> [UInt8]? { bytes[digest] }

    func hold(_ digest: Digest, _ value: [UInt8]) {
        bytes[digest] = value
        holders[digest, default: 0] += 1
    }

    func release(_ digest: Digest) {
        guard let count = holders[digest] else { return }
        holders[digest] = count - 1
        if count == 1 {
            holders[digest] = nil
            bytes[digest] = nil
        }
    }
}

public final class MemoryStorage: ClientStorage {
    private let secretBytes: [UInt8]
    private let shared: SharedBlobs
    /// Where records, residuals and the ledger outlive the process; nil where nothing needs to.
    private let folder: ClientFolder?
    private var held: Set<Digest> = []
    private var kept: ClientRecord?
    private var objects: [Digest: [UInt8]] = [:]
    private var keptLedger = PrivacyLedger()
    private let memoryNoiseKey = NoiseKey.random()

    /// - Parameters:
    ///   - secret: equal in every process of one simulation, so that its clients are known again
    ///   - folder: needed where a resumed simulation has to know what its clients carried: residuals, noise, ledgers
    public init(secret: [UInt8], shared: SharedBlobs, folder: ClientFolder? = nil) {
        secretBytes = secret
        self.shared = shared
        self.folder = folder
    }

    public func secret() throws(Failure) -> [UInt8] { secretBytes }
    public func noiseKey() throws(Failure) -> NoiseKey {
        if let folder { return try folder.noiseKey() }
        return memoryNoiseKey
    }

    public func record(run: String) throws(Failure) -> ClientRecord? {
        if let folder { return try folder.record(run: run) }
        return kept?.run == run ? kept : nil
    }

    public func keep(_ record: ClientRecord, bytes: [[UInt8]]) throws(Failure) {
        if let folder { return try folder.keep(record, bytes: bytes) }
        for bytes in bytes { objects[Digest(of: bytes)] = bytes }
        kept = record
        objects = objects.filter { record.digests.contains($0.key) }
    }

    public func bytes(_ digest: Digest) throws(Failure) -> [UInt8]? {
        if let folder { return try folder.bytes(digest) }
        return objects[digest]
    }

    public func ledger() throws(Failure) -> PrivacyLedger {
        if let folder { return try folder.ledger() }
        return keptLedger
    }

    public func keep(_ ledger: PrivacyLedger) throws(Failure) {
        if let folder { return try folder.keep(ledger) }
        keptLedger = ledger
    }

    public func blob(_ digest: Digest) throws(Failure) -> [UInt8]? { held.contains(digest) ? shared.get(digest) : nil }

    public func keepBlob(_ digest: Digest, bytes: [UInt8]) throws(Failure) {
        if held.insert(digest).inserted { shared.hold(digest, bytes) }
    }

    public func retainBlobs(_ digests: Set<Digest>) throws(Failure) {
        for digest in held.subtracting(digests) {
            held.remove(digest)
            shared.release(digest)
        }
    }
}
