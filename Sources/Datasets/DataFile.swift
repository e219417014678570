/// Data files: JSON Lines, one object a line, or CSV with a header line; the ending of the name says which.

import Primitives

public enum DataFile {
    /// The records in the order of the file. All are of one kind.
    /// - Parameter textField: the field that holds the text, if it has another name than "text"
    /// - Throws: a failure that names the file and the line; also for a file without records.
    public static func read(_ path: String, textField: String? = nil) throws(Failure) -> [Record] {
        try read(FileReading.bytes(path), path: path, textField: textField)
    }

    /// - Parameter path: what the bytes are called in errors; its ending says how they are read.
    public static func read(_ bytes: [UInt8], path: String, textField: String? = nil) throws(Failure) -> [Record] {
        // A byte order mark says nothing in UTF-8.
        let bytes = bytes.starts(with: [0xEF, 0xBB, 0xBF]) ? bytes[3...] : bytes[...]
        let records = try path.lowercased().hasSuffix(".csv") ? csv(bytes, path, textField) : jsonLines(bytes, path, textField)
        guard let first = records.first else { throw Failure(.badData, "\(path) has no records; a data set must not be empty") }
        for record in records where record.kind != first.kind {
            throw Failure(
                .badData,
                "\(record.place): this record has \(record.kind) and the first one has \(first.kind); a file must keep to one kind"
            )
        }
        return records
    }

    private static func jsonLines(
        _ bytes: ArraySlice<UInt8>, _ path: String, _ textField: String?
    ) throws(Failure) -> [Record] {
        var records: [Record] = []
        var line = 0
        var start = bytes.startIndex
        while start < bytes.endIndex {
            line += 1
            let end = bytes[start...].firstIndex(of: 0x0A) ?? bytes.endIndex
            let text = bytes[start..<end]
            start = end + 1
            if text.allSatisfy({ $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }) { continue }
            let value: JSONValue
            do {
                value = try JSONValue(parsing: text)
            } catch {
                throw Failure(
                    .badData,
                    "\(path):\(line): this line is not JSON: \(error.message), at byte \(error.position + 1) of the line")
            }
            guard let members = value.members else {
                throw Failure(.badData, "\(path):\(line): a line must hold one JSON object, not \(value.kind)")
            }
            records.append(try Record(fields: members, path: path, line: line, textField: textField))
        }
        return records
    }

    private static func csv(_ bytes: ArraySlice<UInt8>, _ path: String, _ textField: String?) throws(Failure) -> [Record] {
        var reader = CSVReader(bytes: bytes, path: path)
        guard let header = try reader.row() else { return [] }
        var seen: Set<String> = []
        for name in header.fields where !seen.insert(name).inserted {
            throw Failure(.badData, "\(path):\(header.line): two columns are called \"\(name)\"")
        }
        var records: [Record] = []
        while let row = try reader.row() {
            guard row.fields.count == header.fields.count else {
                throw Failure(
                    .badData,
                    "\(path):\(row.line): this row has \(row.fields.count) fields and the header has \(header.fields.count)")
            }
            let fields = try zip(header.fields, row.fields).map { name, text throws(Failure) in
                JSONValue.Member(name, try cell(text, name, "\(path):\(row.line)"))
            }
            records.append(try Record(fields: fields, path: path, line: row.line, textField: textField))
        }
        return records
    }

    /// A cell is text; in the column "messages" it is an array in JSON.
    private static func cell(_ text: String, _ column: String, _ place: String) throws(Failure) -> JSONValue {
        guard column == "messages" else { return .string(text) }
        do {
            return try JSONValue(parsing: text.utf8)
        } catch {
            throw Failure(.badData, "\(place): \"messages\" is not JSON: \(error.message), at byte \(error.position + 1)")
        }
    }

    /// Writes JSON Lines with every field of every record: reading them gives the same contents and fields.
    public static func write(_ records: [Record], to path: String) throws(Failure) {
        var bytes: [UInt8] = []
        for record in records {
            bytes.append(contentsOf: record.json.utf8)
            bytes.append(0x0A)
        }
        try FileWriting.replace(path, with: bytes)
    }
}

extension Record {
    /// For messages.
    var kind: String {
        switch content {
        case .text: "\"text\""
        case .completion: "\"prompt\" and \"completion\""
        case .messages: "\"messages\""
        }
    }
}
