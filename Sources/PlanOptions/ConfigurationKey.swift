/// One row of the table that joins a key of a configuration file, its flag, and the plan's property.

import Plan
import Primitives
import UpdateCodec

public struct ConfigurationKey<Options: Sendable>: Sendable {
    /// As files have it: `clients_per_round`.
    public let name: String
    /// What values are possible: "a whole number", "one of stored, none, int8, nf4".
    public let expectation: String
    /// Whether a list of values is possible.
    public let isList: Bool
    private let isSetIn: @Sendable (Options) -> Bool
    private let read: @Sendable ([String], inout Options) -> Bool
    private let write: @Sendable (Options, inout FederationPlan) -> Void

    /// As the command line has it: `--clients-per-round`.
    public var flag: String { "--" + String(name.map { $0 == "_" ? "-" : $0 }) }

    /// A key whose value goes into the plan.
    public init<Value: ConfigurationValue>(
        _ name: String, _ option: any WritableKeyPath<Options, Value?> & Sendable,
        plan property: any WritableKeyPath<FederationPlan, Value> & Sendable
    ) {
        self.init(name, option) { value, plan in plan[keyPath: property] = value }
    }

    /// A key whose value goes into the plan, where leaving it out is a value of its own.
    public init<Value: ConfigurationValue>(
        _ name: String, _ option: any WritableKeyPath<Options, Value?> & Sendable,
        plan property: any WritableKeyPath<FederationPlan, Value?> & Sendable
    ) {
        self.init(name, option) { value, plan in plan[keyPath: property] = value }
    }

    /// A key that is not part of the plan.
    public init<Value: ConfigurationValue>(_ name: String, _ option: any WritableKeyPath<Options, Value?> & Sendable) {
        self.init(name, option) { _, _ in }
    }

    private init<Value: ConfigurationValue>(
        _ name: String, _ option: any WritableKeyPath<Options, Value?> & Sendable,
        _ write: @escaping @Sendable (Value, inout FederationPlan) -> Void
    ) {
        self.name = name
        expectation = Value.expectation
        isList = Value.isList
        isSetIn = { $0[keyPath: option] != nil }
        read = { texts, options in
            guard let value = Value(configuration: texts) else { return false }
            options[keyPath: option] = value
            return true
        }
        self.write = { options, plan in
            if let value = options[keyPath: option] { write(value, &plan) }
        }
    }

    private init(
        name: String, expectation: String, isList: Bool, isSetIn: @escaping @Sendable (Options) -> Bool,
        read: @escaping @Sendable ([String], inout Options) -> Bool,
        write: @escaping @Sendable (Options, inout FederationPlan) -> Void
    ) {
        self.name = name
        self.expectation = expectation
        self.isList = isList
        self.isSetIn = isSetIn
        self.read = read
        self.write = write
    }

    /// Whether the options have a value for this key.
    public func isSet(in options: Options) -> Bool { isSetIn(options) }

    /// Puts a file's value into the options.
    ///
    /// - Parameter texts: the scalar's text, or those of a list
    /// - Returns: false if they are no value of this key
    public func set(_ texts: [String], in options: inout Options) -> Bool { read(texts, &options) }

    /// Sets the plan's property if the options have a value.
    public func apply(_ options: Options, _ plan: inout FederationPlan) { write(options, &plan) }

    /// The same row, of options that contain these.
    public func within<Outer>(_ path: any WritableKeyPath<Outer, Options> & Sendable) -> ConfigurationKey<Outer> {
        ConfigurationKey<Outer>(
            name: name, expectation: expectation, isList: isList, isSetIn: { self.isSetIn($0[keyPath: path]) },
            read: { texts, outer in self.read(texts, &outer[keyPath: path]) },
            write: { outer, plan in self.write(outer[keyPath: path], &plan) })
    }
}

/// A value that a configuration file can hold.
public protocol ConfigurationValue: Sendable {
    /// - Parameter texts: the scalar's text, or those of a list
    init?(configuration texts: [String])
    /// "a whole number"
    static var expectation: String { get }
    static var isList: Bool { get }
}

extension ConfigurationValue {
    public static var isList: Bool { false }
}

extension ConfigurationValue where Self: LosslessStringConvertible {
    public init?(configuration texts: [String]) {
        guard texts.count == 1 else { return nil }
        self.init(texts[0])
    }
}

extension Int: ConfigurationValue {
    public static var expectation: String { "a whole number" }
}

extension UInt64: ConfigurationValue {
    public static var expectation: String { "a whole number from 0 up" }
}

extension Double: ConfigurationValue {
    public static var expectation: String { "a number" }
}

extension String: ConfigurationValue {
    public static var expectation: String { "a text" }
}

extension Bool: ConfigurationValue {
    public static var expectation: String { "true or false" }
}

extension Array: ConfigurationValue where Element: ConfigurationValue {
    public init?(configuration texts: [String]) {
        var values: [Element] = []
        for text in texts {
            guard !text.isEmpty, let value = Element(configuration: [text]) else { return nil }
            values.append(value)
        }
        guard !values.isEmpty else { return nil }
        self = values
    }
    public static var expectation: String { "a list, each \(Element.expectation)" }
    public static var isList: Bool { true }
}

/// Names from a closed list.
extension ConfigurationValue where Self: RawRepresentable & CaseIterable, RawValue == String {
    public init?(configuration texts: [String]) {
        guard texts.count == 1, let value = Self(rawValue: texts[0]) else { return nil }
        self = value
    }
    public static var expectation: String { "one of " + allCases.map(\.rawValue).joined(separator: ", ") }
}

extension StrategyName: ConfigurationValue {}
extension Weighting: ConfigurationValue {}
extension StartName: ConfigurationValue {}
extension ScheduleName: ConfigurationValue {}
extension OptimizerName: ConfigurationValue {}
extension PackingName: ConfigurationValue {}
extension QuantizationName: ConfigurationValue {}
extension PrivacyName: ConfigurationValue {}
extension ComputeName: ConfigurationValue {}

extension UpdateCodec: ConfigurationValue {
    public init?(configuration texts: [String]) {
        guard texts.count == 1, let codec = try? UpdateCodec(parsing: texts[0]) else { return nil }
        self = codec
    }
    public static var expectation: String { "f32, bf16, int8, topk:K or compeft:K with a density K such as 0.1" }
}
