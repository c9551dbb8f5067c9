using System.CommandLine;
using System.CommandLine.Invocation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>The program's command line.</summary>
public static class LlamaProgram
{
    private const int Failure = 1;
    private const int WrongUsage = 2;

    /// <summary>Runs a command line.</summary>
    /// <param name="args">Its words.</param>
    /// <param name="input">Where a chat's lines come from.</param>
    /// <param name="output">Where results go.</param>
    /// <param name="error">Where messages go.</param>
    /// <param name="showProgress">Whether <paramref name="error"/> is a terminal, where progress can be drawn.</param>
    /// <returns>The exit code: 0, 1 after an error, or 2 if the command line is wrong.</returns>
    public static int Run(IReadOnlyList<string> args, TextReader input, TextWriter output, TextWriter error, bool showProgress)
    {
        ArgumentNullException.ThrowIfNull(args);
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(output);
        ArgumentNullException.ThrowIfNull(error);
        RootCommand root = new("A Llama whose attention reads a pruned, bitmap-compressed key/value cache.");
        foreach (LlamaCommand command in (LlamaCommand[])
            [new GenerateCommand(), new ChatCommand(input), new CompareCommand(), new PerplexityCommand(), new RecallCommand(), new ScoreCommand()])
        {
            command.SetAction(arguments => command.Run(arguments, output, error, showProgress));
            root.Subcommands.Add(command);
        }

        ParseResult result = root.Parse(args);
        if (result.Action is ParseErrorAction || result.Errors.Count > 0)
        {
            string name = result.CommandResult.Command is LlamaCommand command ? $"{command.Name} " : "";
            error.WriteLine($"error: {OneLine(result.Errors[0].Message)} (see {name}--help)");
            return WrongUsage;
        }

        try
        {
            return result.Invoke(new InvocationConfiguration { Output = output, Error = error, EnableDefaultExceptionHandler = false });
        }
        catch (Exception exception)
        {
            // The border of the program: whatever went wrong is told in a line.
            error.WriteLine($"error: {OneLine(exception.Message)}");
            return Failure;
        }
    }

    // Messages of torch go on with a stack trace, those of argument exceptions with the value.
    private static string OneLine(string message) => message.Split('\n', 2)[0].TrimEnd('\r');
}
