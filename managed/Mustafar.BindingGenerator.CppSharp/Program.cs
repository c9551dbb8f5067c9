using Mustafar.BindingGenerator;
using Mustafar.BindingGenerator.Reader;

return GeneratorCommand.Run(CppSharpHeaderReader.Read, args, Environment.CurrentDirectory, Console.Out, Console.Error);
