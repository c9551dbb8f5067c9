namespace Mustafar.Examples.Llama.Commands;

/// <summary>A command can't do what was asked on the command line.</summary>
internal sealed class CommandException(string message) : Exception(message);
