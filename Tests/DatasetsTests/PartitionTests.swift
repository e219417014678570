/// Partitions: every record on exactly one client, no client empty, the same for the same seed.

import Datasets
import FoundationEssentials
import Primitives
import Testing

/// `counts[k]` records of category "k0", "k1", ..., interleaved.
private func records(_ counts: [Int]) throws -> [Record] {
    var lines: [String] = []
    for index in 0..<(counts.max() ?? 0) {
        for (kind, count) in counts.enumerated() where index < count {
            lines.append("{\"text\":\"\(lines.count)\",\"kind\":\"k\(kind)\"}")
        }
    }
    return try DataFile.read(Array(lines.joined(separator: "\n").utf8), path: "data.jsonl")
}

private func isPartition(_ parts: [[Record]], of records: [Record]) -> Bool {
    parts.allSatisfy { !$0.isEmpty } && parts.joined().map(\.line).sorted() == records.map(\.line)
}

@Suite struct PartitionTests {
    @Test func `iid parts differ in size by at most one and follow from the seed`() throws {
        let all = try records([23, 24])
        let parts = try Partition.iid.split(all, clients: 5, seed: 1)
        #expect(isPartition(parts, of: all))
        #expect(parts.map(\.count) == [10, 10, 9, 9, 9])
        #expect(try Partition.iid.split(all, clients: 5, seed: 1) == parts)
        #expect(try Partition.iid.split(all, clients: 5, seed: 2) != parts)
    }

    @Test func `a field divides by its values in order, dealt in turn where clients are fewer`() throws {
        let all = try records([3, 2, 4])
        let own = try Partition.by(field: "kind").split(all, clients: nil, seed: 1)
        #expect(own.map(\.count) == [3, 2, 4])
        #expect(isPartition(own, of: all))
        let two = try Partition.by(field: "kind").split(all, clients: 2, seed: 1)
        #expect(two.map(\.count) == [7, 2])
        #expect(two[0].map(\.line) == two[0].map(\.line).sorted())
        #expect(throws: Failure.self) { try Partition.by(field: "kind").split(all, clients: 4, seed: 1) }
        let failure = #expect(throws: Failure.self) { try Partition.by(field: "topic").split(all, clients: nil, seed: 1) }
        #expect(failure?.message.hasPrefix("data.jsonl:1") == true)
    }

    @Test(arguments: [UInt64](1...20)) func `a Dirichlet split leaves no record out and no client empty`(seed: UInt64) throws {
        let all = try records([40, 30, 20, 10])
        let parts = try Partition.dirichlet(alpha: 0.3, field: "kind").split(all, clients: 6, seed: seed)
        #expect(isPartition(parts, of: all))
        #expect(try Partition.dirichlet(alpha: 0.3, field: "kind").split(all, clients: 6, seed: seed) == parts)
    }

    @Test func `a larger alpha makes clients more alike`() throws {
        let all = try records([200, 200, 200])
        /// The mean over clients of the share of each one's most frequent category.
        func oneSidedness(_ alpha: Double) throws -> Double {
            let shares = try (1...10).flatMap { seed in
                try Partition.dirichlet(alpha: alpha, field: "kind").split(all, clients: 5, seed: UInt64(seed)).map { part in
                    let counts = try ["k0", "k1", "k2"].map { kind in try part.count { try $0.value("kind") == kind } }
                    return Double(counts.max()!) / Double(part.count)
                }
            }
            return shares.reduce(0, +) / Double(shares.count)
        }
        let (little, much) = (try oneSidedness(0.1), try oneSidedness(100))
        #expect(little > 0.75)
        #expect(much < 0.45)
    }

    @Test func `a split that cannot give every client a record is an error and not an empty client`() throws {
        let failure = #expect(throws: Failure.self) {
            try Partition.dirichlet(alpha: 0.001, field: "kind").split(try records([30]), clients: 10, seed: 1)
        }
        #expect(failure?.message.contains("100 draws") == true)
        #expect(throws: Failure.self) { try Partition.iid.split(try records([3]), clients: 4, seed: 1) }
        #expect(throws: Failure.self) { try Partition.iid.split(try records([3]), clients: nil, seed: 1) }
        #expect(throws: Failure.self) { try Partition.iid.split(try records([3]), clients: 0, seed: 1) }
    }

    @Test func `partitions are written as people write them`() throws {
        #expect(try Partition(parsing: "iid") == .iid)
        #expect(try Partition(parsing: "by:a:b") == .by(field: "a:b"))
        #expect(try Partition(parsing: "dirichlet:0.5:kind") == .dirichlet(alpha: 0.5, field: "kind"))
        for text in [
            "", "iid:", "by", "by:", "dirichlet", "dirichlet:0.5", "dirichlet:0:kind", "dirichlet:x:kind", "dirichlet:nan:k",
            "IID",
        ] {
            let failure = #expect(throws: Failure.self, "\(text)") { try Partition(parsing: text) }
            #expect(failure?.status == .usage)
        }
    }

    @Test func `written partitions hold the same records under the clients' names`() throws {
        let all = try records([5, 4])
        let parts = try Partition.iid.split(all, clients: 3, seed: 1)
        let folder =
            FileManager.default.temporaryDirectory.path + "/tributary-partitions-\(ProcessInfo.processInfo.processIdentifier)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let written = try Partition.write(parts, to: folder + "/inner")
        #expect(written.map(\.name) == ["client-000", "client-001", "client-002"])
        for (part, file) in zip(parts, written) {
            #expect(file.path == "\(folder)/inner/\(file.name).jsonl")
            let again = try DataFile.read(file.path)
            #expect(again.map(\.fields) == part.map(\.fields))
            #expect(again.map(\.content) == part.map(\.content))
        }
        #expect(Partition.clientName(7, of: 1001) == "client-0007")
    }
}
