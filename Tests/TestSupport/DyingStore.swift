/// A federation's store that fails after a number of writes.

import CoordinatorCore
import Primitives

/// A store that dies after a number of writes, as a killed process does: what was applied stays, nothing more comes.
public final class DyingStore: FederationStore {
    private let inner: any FederationStore
    private var writesLeft: Int

    public init(_ inner: any FederationStore, after writes: Int) {
        self.inner = inner
        writesLeft = writes
    }

    public func apply(_ changes: [StoreChange]) throws(Failure) {
        guard writesLeft > 0 else { throw Failure(.ioError, "killed") }
        writesLeft -= 1
        try inner.apply(changes)
    }
    public func load() throws(Failure) -> StoredFederation? { try inner.load() }
    public func chunkIndices(client: String, digest: Digest) throws(Failure) -> [Int] {
        try inner.chunkIndices(client: client, digest: digest)
    }
    public func assembledChunks(client: String, digest: Digest) throws(Failure) -> [UInt8] {
        try inner.assembledChunks(client: client, digest: digest)
    }
    public func contributionBytes(round: Int, client: String) throws(Failure) -> [UInt8] {
        try inner.contributionBytes(round: round, client: client)
    }
    public func blobBytes(_ digest: Digest) throws(Failure) -> [UInt8]? { try inner.blobBytes(digest) }
}
