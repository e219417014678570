/// A simulated client's state in memory, with one cache of adapters for all of them.

import Primitives
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
    private var held: Set<Digest> = []
    private var kept: (PendingContribution, bytes: [UInt8])?
    private var last: ContributionKey?

    /// - Parameter secret: equal in every process of one simulation, so that its clients are known again
    public init(secret: [UInt8], shared: SharedBlobs) {
        secretBytes = secret
        self.shared = shared
    }

    public func secret() throws(Failure) -> [UInt8] { secretBytes }
    public func pending(run: String) throws(Failure) -> (PendingContribution, bytes: [UInt8])? { kept }
    public func keep(_ pending: PendingContribution, bytes: [UInt8], run: String) throws(Failure) { kept = (pending, bytes) }
    public func discardPending(run: String) throws(Failure) { kept = nil }
    public func lastContribution(run: String) throws(Failure) -> ContributionKey? { last }
    public func setLastContribution(_ key: ContributionKey?, run: String) throws(Failure) { last = key }
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
