namespace Mustafar.Examples.Llama.Commands;

/// <summary>A command can't do what the command line asks.</summary>
internal sealed class CommandException(string message) : Exception(message);
