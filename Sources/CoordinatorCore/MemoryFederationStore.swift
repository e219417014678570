/// A federation in memory, for tests of the core. It passes the same contract as the SQLite store.

import Primitives

public final class MemoryFederationStore: FederationStore {
    private var federation: StoredFederation?
    private var chunks: [String: [Digest: [Int: [UInt8]]]] = [:]
    private var contributions: [String: [UInt8]] = [:]
    private var blobs: [Digest: [UInt8]] = [:]

    public init() {}

    public func load() throws(Failure) -> StoredFederation? { federation }

    public func apply(_ changes: [StoreChange]) throws(Failure) {
        for change in changes {
            switch change {
            case .run(let id, let plan, let noise):
                federation = StoredFederation(runID: id, plan: plan, noise: noise)
            case .member(let member):
                federation?.members.removeAll { $0.name == member.name }
                federation?.members.append(member)
                federation?.members.sort { $0.name < $1.name }
            case .forget(let name):
                federation?.members.removeAll { $0.name == name }
            case .chunk(let client, let digest, let index, let bytes):
                chunks[client] = [digest: (chunks[client]?[digest] ?? [:]).merging([index: bytes]) { $1 }]
            case .contribution(let record, let bytes):
                federation?.contributions.removeAll { $0.round == record.round && $0.client == record.client }
                federation?.contributions.append(record)
                federation?.contributions.sort { ($0.round, $0.client) < ($1.round, $1.client) }
                contributions["\(record.round) \(record.client)"] = bytes
                chunks[record.client] = nil
            case .discardChunks(let client):
                chunks[client] = nil
            case .attempt(let attempt):
                federation?.attempt = attempt
            case .blob(let blob, let bytes):
                blobs[blob.digest] = bytes
            case .discardBlob(let digest):
                blobs[digest] = nil
            case .adapter(let adapter):
                federation?.adapters.removeAll { $0.round == adapter.round }
                federation?.adapters.append(adapter)
            case .closeRound(let record):
                replace(record)
                if var all = federation?.contributions {
                    for index in all.indices where all[index].round == record.round {
                        all[index].counted = record.participants.contains(all[index].client)
                    }
                    federation?.contributions = all
                }
                contributions = [:]
                chunks = [:]
            case .updateRecord(let record):
                replace(record)
            case .evaluation(let record):
                federation?.evaluations.removeAll { $0.round == record.round && $0.client == record.client }
                federation?.evaluations.append(record)
            case .traffic(let traffic):
                federation?.traffic = traffic
            case .finished:
                federation?.finished = true
            }
        }
    }

    private func replace(_ record: RoundRecord) {
        federation?.records.removeAll { $0.round == record.round }
        federation?.records.append(record)
    }

    public func chunkIndices(client: String, digest: Digest) throws(Failure) -> [Int] {
        (chunks[client]?[digest] ?? [:]).keys.sorted()
    }

    public func assembledChunks(client: String, digest: Digest) throws(Failure) -> [UInt8] {
        (chunks[client]?[digest] ?? [:]).sorted { $0.key < $1.key }.flatMap(\.value)
    }

    public func contributionBytes(round: Int, client: String) throws(Failure) -> [UInt8] {
        guard let bytes = contributions["\(round) \(client)"] else {
            throw Failure(.badData, "there is no contribution of \(client) to round \(round)")
        }
        return bytes
    }

    public func blobBytes(_ digest: Digest) throws(Failure) -> [UInt8]? { blobs[digest] }
}
