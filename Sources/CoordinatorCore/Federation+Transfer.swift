/// Contributions on their way in.

import Adapters
import Plan
import Primitives
import UpdateCodec
import Wire

extension Federation {
    /// The layout of what a client uploads, known before a byte of it arrives.
    public func layout(of kind: ContributionKind, rank: Int) throws(Failure) -> AdapterLayout {
        let specification = try plan.specification(rank: rank, maps: maps)
        return kind == .start ? specification.startLayout : specification.trainedLayout
    }

    /// How a contribution is encoded.
    func codec(of kind: ContributionKind) -> UpdateCodec { kind == .start ? .float32 : plan.compress }

    /// Why this client may not contribute that now, or nil.
    private func objection(_ kind: ContributionKind, round: Int, from name: String) -> Decision? {
        switch (kind, phase) {
        case (.start, .starting(let starter, _)) where starter == name: return nil
        case (.update, .round)
        where round == currentRound && attempt?.selected.contains(name) == true && contributions[name] == nil: return nil
        default:
            return Self.refusal(
                .notSelected, "a contribution of client \(name) to round \(round) is not wanted now: the run is elsewhere")
        }
    }

    mutating func receiveChunk(from name: String, _ upload: UploadChunk) -> Decision {
        if contributions[name]?.digest == upload.digest {
            return Decision(.chunkReceived(ChunkReceived(digest: upload.digest, index: upload.index)))
        }
        if let objection = objection(upload.kind, round: Int(upload.round), from: name) { return objection }
        guard let member = members[name], let layout = try? layout(of: upload.kind, rank: member.rank) else {
            return Self.refusal(.badMessage, "client \(name) has no layout in this run")
        }
        let limit = EncodedState.byteLimit(layout: layout, codec: codec(of: upload.kind))
        guard upload.totalBytes <= UInt64(limit),
            let range = Chunking.range(ofChunk: Int(upload.index), byteCount: Int(upload.totalBytes)),
            Int(upload.count) == Chunking.count(ofByteCount: Int(upload.totalBytes))
        else {
            return Self.refusal(
                .tooLarge,
                "client \(name) announced \(upload.totalBytes) bytes in \(upload.count) chunks, but its contribution has at most \(limit) bytes"
            )
        }
        guard upload.bytes.count == range.count else {
            return Self.refusal(
                .badMessage, "chunk \(upload.index) of client \(name) has \(upload.bytes.count) bytes instead of \(range.count)")
        }
        var decision = Decision(
            .chunkReceived(ChunkReceived(digest: upload.digest, index: upload.index)))
        if receivedChunks[name]?.digest != upload.digest { receivedChunks[name] = (upload.digest, []) }
        if receivedChunks[name]?.indices.insert(upload.index).inserted == true {
            decision.requestTraffic = upload.kind == .start ? .oneTime : .uplink
        }
        decision.changes.append(
            .chunk(client: name, digest: upload.digest, index: Int(upload.index), bytes: upload.bytes))
        return decision
    }

    /// The answer to a commit whose bytes need not be looked at, or nil.
    mutating func screen(_ commit: Commit, from name: String) -> Decision? {
        // Far above what any training gives, and far below what sums of it could not hold.
        if let told = commit.training, abs(told.trainLoss) > Self.largestLoss || told.targetTokens > Self.largestCount {
            return Self.refusal(
                .badMessage,
                "client \(name) tells of a loss of \(told.trainLoss) over \(told.targetTokens) tokens, which no training gives")
        }
        let key = ContributionKey(round: commit.round, digest: commit.digest)
        // Two rounds can bring the same bytes, as an update of zeros does: the round is part of what a contribution is.
        let known = [contributions[name], lastClosed[name]].contains {
            $0?.digest == commit.digest && $0?.round == Int(commit.round)
        }
        if commit.kind == .update, known {
            return Decision(.committed(Committed(status: status(of: key, from: name), missing: [])))
        }
        if commit.kind == .start, adapter != nil {
            return Decision(.committed(Committed(status: .counted, missing: [])))
        }
        if let objection = objection(commit.kind, round: Int(commit.round), from: name) {
            var decision = objection
            decision.changes.append(.discardChunks(client: name))
            // A client that heard nothing of its commit asks when the round is long closed: it may have counted.
            decision.reply = .committed(
                Committed(status: commit.kind == .update ? status(of: key, from: name) : .dropped, missing: []))
            return decision
        }
        return nil
    }

    /// Stores a contribution whose bytes were checked.
    mutating func accept(_ commit: Commit, bytes: [UInt8], from name: String) -> Decision {
        // What a plan keeps private is not kept here either, whatever a client sends.
        let training = plan.privacy == .none ? commit.training : nil
        let exampleCount = plan.tellsCounts ? commit.exampleCount : nil
        let record = ContributionRecord(
            round: Int(commit.round), attempt: Int(commit.attempt), client: name, rank: members[name]?.rank ?? plan.ranks[0],
            digest: commit.digest,
            exampleCount: exampleCount.map { min(Int(clamping: $0), members[name]?.exampleCount ?? 1) },
            trainLoss: training?.trainLoss, targetTokens: training.map { Int(clamping: $0.targetTokens) },
            trainSeconds: training.map { Double($0.trainSeconds) }, counted: nil)
        contributions[name] = record
        traffic.uplinkValues += members[name].flatMap { try? layout(of: .update, rank: $0.rank).parameterCount } ?? 0
        var decision = Decision(.committed(Committed(status: .pending, missing: [])))
        decision.requestTraffic = .uplink
        decision.changes.append(.contribution(record, bytes: bytes))
        decision.combine = attempt.map { $0.selected.allSatisfy { contributions[$0] != nil } } ?? false
        return decision
    }
}
