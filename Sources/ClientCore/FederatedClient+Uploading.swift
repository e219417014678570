/// A kept contribution on its way: chunks, the commit that makes them count, and what became of it.

import Plan
import Primitives
import Wire

extension FederatedClient {
    mutating func upload(
        _ contribution: KeptContribution, bytes: [UInt8], _ record: inout ClientRecord, _ joined: Joined
    ) throws(Refused) -> ClientEvent {
        let count = Chunking.count(ofByteCount: bytes.count)
        var wanted = Array(0..<count)
        // Once, and once more for chunks that a restarted coordinator has lost.
        for _ in 0..<3 {
            for index in wanted {
                guard let range = Chunking.range(ofChunk: index, byteCount: bytes.count) else { continue }
                let sent = try isWanted(
                    .uploadChunk(
                        UploadChunk(
                            session: joined.session, kind: contribution.kind, round: UInt32(contribution.round),
                            digest: contribution.digest, index: UInt32(index), count: UInt32(count),
                            totalBytes: UInt64(bytes.count), bytes: Array(bytes[range]))))
                // The commit says why it is not wanted: the round may have closed with it or without it.
                if !sent { break }
            }
            let reply = try exchange(
                .commit(
                    Commit(
                        session: joined.session, kind: contribution.kind, round: UInt32(contribution.round),
                        attempt: UInt32(contribution.attempt), digest: contribution.digest, totalBytes: UInt64(bytes.count),
                        exampleCount: contribution.exampleCount.map(UInt64.init), training: contribution.training)))
            guard case .committed(let committed) = reply else { throw unexpected(reply, to: "a commit") }
            guard committed.missing.isEmpty else {
                wanted = committed.missing.map(Int.init)
                continue
            }
            try Refused.wrap { () throws(Failure) in
                if committed.status == .dropped { record.drop() } else { record.acknowledge() }
                try storage.keep(record, bytes: [])
            }
            if contribution.isStart { return .started(bytes: bytes.count) }
            return .contributed(
                round: contribution.round, trainLoss: contribution.trainLoss, seconds: contribution.trainSeconds,
                bytes: bytes.count, status: committed.status)
        }
        throw Refused.failure(
            Failure(
                .protocolError,
                "the coordinator keeps asking for chunks of the contribution to round \(contribution.round) that were sent"))
    }

    /// False if the coordinator does not want this part of the contribution any more.
    private func isWanted(_ request: Request) throws(Refused) -> Bool {
        do throws(Refused) {
            _ = try exchange(request, bulk: true)
            return true
        } catch {
            if case .refusal(let refusal) = error, refusal.code == .notSelected { return false }
            throw error
        }
    }
}
