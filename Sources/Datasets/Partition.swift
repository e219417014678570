/// How one data set is divided among the clients of a simulated federation.

import FoundationEssentials
import Primitives

public enum Partition: Equatable, Sendable, CustomStringConvertible {
    /// At random, in parts whose sizes differ by at most one.
    case iid
    /// Each category of a field is divided in proportions from a symmetric Dirichlet distribution (Hsu, Qi and Brown
    /// 2019, section 3): the smaller alpha, the more one-sided the clients.
    case dirichlet(alpha: Double, field: String)
    /// One value of a field a client; with fewer clients than values, in turn.
    case by(field: String)

    /// How often an unlucky Dirichlet draw, one that leaves a client without records, is repeated.
    static let drawLimit = 100

    /// - Parameter text: "iid", "dirichlet:ALPHA:FIELD" or "by:FIELD"
    public init(parsing text: String) throws(Failure) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        switch (parts[0], parts.count) {
        case ("iid", 1): self = .iid
        case ("by", 2) where !parts[1].isEmpty: self = .by(field: parts[1])
        case ("dirichlet", 2):
            let rest = parts[1].split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard rest.count == 2, !rest[1].isEmpty, let alpha = Double(rest[0]), alpha > 0, alpha.isFinite else { fallthrough }
            self = .dirichlet(alpha: alpha, field: rest[1])
        default:
            throw Failure(
                .usage,
                "\"\(text)\" is no partition; write iid, by:FIELD, or dirichlet:ALPHA:FIELD with ALPHA above 0, as dirichlet:0.5:category"
            )
        }
    }

    public var description: String {
        switch self {
        case .iid: "iid"
        case .dirichlet(let alpha, let field): "dirichlet:\(alpha):\(field)"
        case .by(let field): "by:\(field)"
        }
    }

    /// One list of records a client, none empty, each in the order of the file.
    /// - Parameters:
    ///   - clients: nil only for `by`: as many as the field has values
    ///   - seed: of the run
    public func split(_ records: [Record], clients: Int?, seed: UInt64) throws(Failure) -> [[Record]] {
        if let clients, clients < 1 { throw Failure(.usage, "there must be at least one client, not \(clients)") }
        if let clients, clients > records.count {
            throw Failure(.usage, "\(records.count) records are too few for \(clients) clients; every client needs one")
        }
        let parts: [[Int]]
        switch self {
        case .iid:
            var generator = SeededGenerator(seed: seed, purpose: "partition")
            let count = try required(clients)
            let order = generator.permutation(records.count)
            let (size, larger) = records.count.quotientAndRemainder(dividingBy: count)
            parts = (0..<count).map { client in
                let start = client * size + min(client, larger)
                return Array(order[start..<start + size + (client < larger ? 1 : 0)])
            }
        case .by(let field):
            let categories = try categories(records, field)
            let count = clients ?? categories.count
            guard count <= categories.count else {
                throw Failure(
                    .usage,
                    "\"\(field)\" has \(categories.count) values, too few for \(count) clients; "
                        + "use --clients \(categories.count), or dirichlet:ALPHA:\(field)")
            }
            var dealt = Array(repeating: [Int](), count: count)
            for (index, category) in categories.enumerated() { dealt[index % count] += category }
            parts = dealt
        case .dirichlet(let alpha, let field):
            parts = try dirichlet(try categories(records, field), alpha, try required(clients), seed)
        }
        return parts.map { $0.sorted().map { records[$0] } }
    }

    private func required(_ clients: Int?) throws(Failure) -> Int {
        guard let clients else { throw Failure(.usage, "the partition \(self) needs a number of clients; add --clients N") }
        return clients
    }

    /// The indices of the records of each value of the field, in the bytewise order of the values.
    private func categories(_ records: [Record], _ field: String) throws(Failure) -> [[Int]] {
        var indices: [[UInt8]: [Int]] = [:]
        for (index, record) in records.enumerated() {
            guard let value = try record.value(field) else {
                let keys = record.fields.map { "\"\($0.key)\"" }.joined(separator: ", ")
                throw Failure(.badData, "\(record.place): there is no \"\(field)\" to divide the data by; the record has \(keys)")
            }
            indices[Array(value.utf8), default: []].append(index)
        }
        return indices.sorted { $0.key.lexicographicallyPrecedes($1.key) }.map(\.value)
    }

    private func dirichlet(_ categories: [[Int]], _ alpha: Double, _ clients: Int, _ seed: UInt64) throws(Failure) -> [[Int]] {
        for attempt in 0..<Self.drawLimit {
            var generator = SeededGenerator(seed: seed, purpose: "partition", attempt: attempt)
            var parts = Array(repeating: [Int](), count: clients)
            for category in categories {
                var category = category
                generator.shuffle(&category)
                let shares = generator.dirichlet(alpha: alpha, count: clients)
                var (start, sum) = (0, 0.0)
                for (client, share) in shares.enumerated() {
                    sum += share
                    let end = client == clients - 1 ? category.count : min(category.count, Int(sum * Double(category.count)))
                    parts[client] += category[start..<max(start, end)]
                    start = max(start, end)
                }
            }
            if parts.allSatisfy({ !$0.isEmpty }) { return parts }
        }
        throw Failure(
            .usage,
            "\(self) left a client without records in each of \(Self.drawLimit) draws; use a larger ALPHA, fewer clients or more data"
        )
    }

    /// "client-000", ...: padded to the width of the largest, at least three digits.
    public static func clientName(_ index: Int, of count: Int) -> String {
        let width = max(3, String(max(count, 1) - 1).count)
        let digits = String(index)
        return "client-" + String(repeating: "0", count: max(0, width - digits.count)) + digits
    }

    /// Writes each client's records as NAME.jsonl into the folder, which is made if it does not exist.
    /// - Returns: the names and the paths.
    @discardableResult
    public static func write(_ parts: [[Record]], to folder: String) throws(Failure) -> [(name: String, path: String)] {
        do {
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        } catch {
            throw Failure(
                .cannotCreate,
                "the folder \(folder) cannot be made; is there a file of that name, and are you allowed to write there?")
        }
        var written: [(name: String, path: String)] = []
        for (index, records) in parts.enumerated() {
            let name = clientName(index, of: parts.count)
            let path = "\(folder)/\(name).jsonl"
            try DataFile.write(records, to: path)
            written.append((name, path))
        }
        return written
    }
}
