/// The labels of a classification task, in the order of the classifier's outputs.

import Primitives

public struct LabelSet: Sendable, Equatable {
    public let names: [String]
    /// By bytes: Swift's strings are equal up to canonical equivalence, and labels are not.
    private let indices: [[UInt8]: Int32]

    /// Bytes of an unknown label that is compared with every known one, and characters of it in a message.
    private static let longestCompared = 256
    private static let longestShown = 80

    /// - Parameter names: each once
    public init(_ names: [String]) {
        self.names = names
        indices = Dictionary(names.enumerated().map { (Array($1.utf8), Int32($0)) }) { first, _ in first }
    }

    /// Every label of the records, in bytewise order.
    ///
    /// - Throws: a failure that names the file and the line of a record without the field
    public init(of records: [Record], field: String) throws(Failure) {
        var seen: [[UInt8]: String] = [:]
        for record in records {
            let label = try record.label(field)
            seen[Array(label.utf8)] = label
        }
        self.init(seen.sorted { $0.key.lexicographicallyPrecedes($1.key) }.map(\.value))
    }

    /// The labels of a task that is learnt from these records.
    ///
    /// - Throws: a failure that names the file, and the line of a record without the field, or if all have one label
    public init(classifying records: [Record], field: String) throws(Failure) {
        try self.init(of: records, field: field)
        guard names.count != 1 else {
            throw Failure(
                .badData,
                "\(records[0].path): every record has the label \"\(Self.shown(names[0]))\" in \"\(field)\": classification needs at least 2 labels"
            )
        }
    }

    private static func shown(_ label: String) -> String {
        label.count > longestShown ? label.prefix(longestShown) + "..." : label
    }

    /// The place of the record's label.
    ///
    /// - Throws: a failure that names the file and the line, and the label that was probably meant
    public func index(of record: Record, field: String) throws(Failure) -> Int32 {
        let label = try record.label(field)
        if let index = indices[Array(label.utf8)] { return index }
        // A column of whole texts, named by mistake, is compared with nothing and not printed whole.
        let nearest = label.utf8.count <= Self.longestCompared ? NearestName.of(label, among: names) : nil
        let advice = nearest.map { "did you mean \"\($0)\"?" } ?? "add it, or correct the record"
        throw Failure(
            .badData,
            "\(record.place): the label \"\(Self.shown(label))\" is not one of the \(names.count) labels of this task; \(advice)")
    }
}

extension Record {
    /// The value of the field that holds the label.
    func label(_ field: String) throws(Failure) -> String {
        guard let label = try value(field) else {
            let keys = fields.map { "\"\($0.key)\"" }.joined(separator: ", ")
            throw Failure(
                .badData,
                "\(place): there is no label in \"\(field)\"; the record has \(keys): name the right one with --label-field")
        }
        guard !label.isEmpty else {
            throw Failure(.badData, "\(place): the label in \"\(field)\" is empty: write one, or leave the record out")
        }
        return label
    }
}

/// What examples are made for.
public enum LearningTask: Sendable, Equatable {
    /// To predict tokens.
    case causal
    /// To tell the label that stands in a field of each record.
    case classify(LabelSet, field: String)
}
