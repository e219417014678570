/// One record of a data file: what to learn from, and every field as the file has it.

import Primitives
import Tokenizers

public struct Record: Equatable, Sendable {
    public enum Content: Equatable, Sendable {
        /// Everything is learnt.
        case text(String)
        /// Only the completion is learnt.
        case completion(prompt: String, completion: String)
        /// Only the assistant's turns are learnt.
        case messages([ChatMessage])
    }

    public let content: Content
    /// All fields in the order of the file, those that training does not use included.
    public let fields: [JSONValue.Member]
    /// The file, and the line on which the record starts, from 1.
    public let path: String
    public let line: Int

    /// - Parameter textField: a field of another name that is the text, whatever other fields there are; nil means "text"
    /// - Throws: a failure that names the file and the line, if the fields are not exactly one kind of content.
    public init(fields: [JSONValue.Member], path: String, line: Int, textField: String? = nil) throws(Failure) {
        self.fields = fields
        self.path = path
        self.line = line
        let reader = RecordReader(fields: fields, place: "\(path):\(line)")
        if let textField { content = .text(try reader.text(textField)) } else { content = try reader.content() }
    }

    /// "path:line", for messages.
    public var place: String { "\(path):\(line)" }

    /// A field as text, to sort records by; nil if it is missing or null.
    /// - Throws: a failure if it is an array or an object.
    public func value(_ field: String) throws(Failure) -> String? {
        guard let value = fields.first(where: { $0.key.utf8.elementsEqual(field.utf8) })?.value else { return nil }
        switch value {
        case .null: return nil
        case .string(let text), .number(let text): return text
        case .boolean(let value): return value ? "true" : "false"
        case .array, .object:
            throw Failure(
                .badData, "\(place): \"\(field)\" is \(value.kind), which is no category; it must be a string or a number")
        }
    }

    /// The record as one line of JSON, without the line's end.
    public var json: String { JSONValue.object(fields).compact }
}

/// Finds the content among the fields of a record.
private struct RecordReader {
    let fields: [JSONValue.Member]
    let place: String

    private static let wanted = "\"text\", or \"prompt\" and \"completion\", or \"messages\""

    func text(_ name: String) throws(Failure) -> String {
        guard let value = field(name) else {
            throw failure("there is no \"\(name)\"; the record has \(fields.map { "\"\($0.key)\"" }.joined(separator: ", "))")
        }
        return try string(value, name)
    }

    func content() throws(Failure) -> Record.Content {
        let (text, messages) = (field("text"), field("messages"))
        let (prompt, completion) = (field("prompt"), field("completion"))
        let kinds = [text != nil, prompt != nil || completion != nil, messages != nil].filter { $0 }.count
        guard kinds > 0 else {
            let keys = fields.map { "\"\($0.key)\"" }.joined(separator: ", ")
            throw failure("a record needs \(Self.wanted); this one has \(keys.isEmpty ? "no fields" : keys)")
        }
        guard kinds == 1 else { throw failure("a record must have only one of \(Self.wanted)") }
        if let text { return .text(try string(text, "text")) }
        if let messages { return .messages(try turns(messages)) }
        guard let prompt, let completion else {
            throw failure(
                prompt == nil
                    ? "there is a \"completion\" without a \"prompt\"" : "there is a \"prompt\" without a \"completion\"")
        }
        return .completion(prompt: try string(prompt, "prompt"), completion: try string(completion, "completion"))
    }

    private func failure(_ problem: String) -> Failure { Failure(.badData, "\(place): \(problem)") }

    private func field(_ key: String) -> JSONValue? {
        guard let value = fields.first(where: { $0.key == key })?.value, !value.isNull else { return nil }
        return value
    }

    private func string(_ value: JSONValue, _ name: String) throws(Failure) -> String {
        guard let text = value.text else { throw failure("\"\(name)\" must be a string, not \(value.kind)") }
        return text
    }

    private func turns(_ value: JSONValue) throws(Failure) -> [ChatMessage] {
        guard let elements = value.elements else { throw failure("\"messages\" must be an array, not \(value.kind)") }
        guard !elements.isEmpty else { throw failure("\"messages\" is empty") }
        return try elements.enumerated().map { index, element throws(Failure) in
            guard let members = element.members else {
                throw failure("\"messages[\(index)]\" must be an object, not \(element.kind)")
            }
            for key in members.map(\.key) where ["tool_calls", "tool_call_id", "reasoning_content"].contains(key) {
                if element[key]?.isNull == false { throw failure("\"messages[\(index)].\(key)\" is not supported") }
            }
            guard let role = element["role"], let content = element["content"] else {
                throw failure("\"messages[\(index)]\" needs a \"role\" and a \"content\"")
            }
            return ChatMessage(
                role: try string(role, "messages[\(index)].role"), content: try string(content, "messages[\(index)].content"))
        }
    }
}
